"""The dashboard: pages for the people who operate the wallet, under /ui/ of a host name of its own.

It is a client of the API inside the daemon: each page and each form calls the API's own paths as its session's
app (`in_process.py`), so the API's scopes, limits and refusals hold here. Start at `app.py` (what every request
passes), then `pages/`: one module for each page, which gives plain values to its template in `templates/`. It
states what the page needs and what the navigation shows of it (`MenuEntry`); `build.py` finds the modules.

Never: SQL; decides whether to pay; answers under a host name of the API.
"""

"""settings: what the operator decided, read once from a TOML file and the environment into frozen values.

`tables` has the keys, `fields` what a value has to look like; `loading` reads and merges the sources and says what
is wrong; `places` knows which file lies where.

May import: pydantic-settings, core, secret_file (its types), fence. Never: reads or keeps a secret. Secrets lie in
files of their own, which are named here and read at use (`secretfile`).

config/payagent.example.toml explains every key. A flag wins over the environment, the environment over the
file, the file over the defaults. What is wrong is told with the key, the place and the fix, never the value.
"""

"""The settings room: the operator's config, read from a TOML file and the environment into frozen values.

`schema` has every key and `field_types` the types of values. `loading` reads and merges the sources and explains
errors. `paths` knows the wallet's files. config/payagent.example.toml explains every key. A flag overrides the
environment, the environment the file, the file the defaults. An error names the key, the place and the fix, never
the value.
May import: pydantic, core, secret_file (its types), sandbox.
Never: reads or keeps a secret. Secrets are in files of their own, which are named here and read at use
(`secret_file`).
"""

"""The settings room: reads the operator's config from a TOML file and the environment into frozen values.

Start with `loading.load_settings`. `schema` has every key, `field_types` the types of values, `paths` the
wallet's files. A flag overrides the environment, the environment overrides the file, and the file overrides the
defaults. An error names the key, where it was set and what to write instead, but never the value.
Never: reads or keeps a secret. The config names a file for each secret; `secret_file` reads it when it is used.
"""

"""The YAML that hydra composes over the typed defaults of `timemaster.config`."""

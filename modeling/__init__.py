"""The files that go into every Hub repository, for `trust_remote_code=True`."""

"""The parts of the backend as a service; `mega_backend.server` puts them together."""

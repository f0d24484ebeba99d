"""The endpoints, a module each; `service.application` lists them."""

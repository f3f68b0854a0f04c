"""The victim selector as a service: cluster cache, guards, extender verbs, controller."""

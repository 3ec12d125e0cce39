"""
Events: one small typed value per step of a call and of a pool, for the hooks of a registry.
"""

"""
What a test-suite needs: inline mode and the pytest fixtures.
"""

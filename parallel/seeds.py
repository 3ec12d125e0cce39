"""
What a map draws: one independent random seed per item, whatever the chunks and workers.
"""

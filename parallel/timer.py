"""
The one timer thread: timeouts, waiting between attempts, rates.
"""

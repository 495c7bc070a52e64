"""From token ids to token ids and back to text: requests, their scheduling, tokenisation, chat templates.

No torch, no I/O after loading, no clock of its own: times are passed in.
"""

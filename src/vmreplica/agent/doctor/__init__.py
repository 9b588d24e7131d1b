"""``vmreplica doctor``: looks for trouble before it comes.

Probes gather facts, each with a time limit; pure judgements make findings of them.
"""

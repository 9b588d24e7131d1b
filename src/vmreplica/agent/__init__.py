"""The agent: composition root, scheduler, replication cycles, journal, configuration.

It knows every stage and connects them; the stages do not know it, nor each other. Decisions (what is due, what a cycle
does next) are pure functions in ``schedule`` and ``decide``; ``cycle`` carries them out.
"""

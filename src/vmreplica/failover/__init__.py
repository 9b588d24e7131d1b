"""Starting a replica: a pure plan, shown and confirmed, then executed; each state is persisted before its act.

Knows the repository and the hypervisor; knows nothing of schedules, peers or the sending side.
"""

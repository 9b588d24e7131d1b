"""The local REST API: an aiohttp application on a unix socket, for the command line and for scripts of this host.

It translates HTTP into calls of the agent's facade and reports and errors back into JSON. It may not know what the
agent is made of, and it decides nothing. ``requests`` holds the bodies that the command line sends; importing it (or
this package) does not import aiohttp.
"""

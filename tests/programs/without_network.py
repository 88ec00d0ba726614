"""Run another program in this process, with every attempt to open a connection an error.

without_network.py PROGRAM ARGUMENTS
"""

import runpy
import sys

BLOCKED = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "urllib.Request", "http.client.connect"}


def block(event, arguments):
    if event in BLOCKED:
        raise AssertionError(f"{event}{arguments} without a network")


sys.addaudithook(block)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")

# _core.pyx: the data plane's face: what Python may call.
#
# Rules of this room
#   1. Here, and only here, statuses of the rooms in _core/ become exceptions.
#   2. Nothing per frame or per listener happens here: Python calls in, the rooms do the work.

cdef extern from *:
    """
    #if defined(__SANITIZE_ADDRESS__)
    #define RELAY_BUILD "asan"
    #elif defined(RELAY_CHECKED)
    #define RELAY_BUILD "checked"
    #else
    #define RELAY_BUILD "release"
    #endif
    """
    const char* RELAY_BUILD

BUILD = RELAY_BUILD.decode("ascii")  # which build this is: "release", "checked" or "asan"

cdef enum:  # frame flags, also on the wire
    FRAME_START = 1    # a listener may begin here
    FRAME_HEADER = 2   # a header page (Ogg): kept for late joiners, never a start
    FRAME_CHAIN = 4    # the first header page of a chain: the kept header begins anew
    FRAME_BYTES_MAX = 65536

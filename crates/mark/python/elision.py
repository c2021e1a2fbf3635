# SPDX-License-Identifier: MIT OR Apache-2.0
"""Memory that a checkpoint of the virtual machine leaves out, although the program that has it goes on.

A user who saves the program's VM with `elision save --exclude region=named` gets an image without what stands in a
Region: after a restore the program finds zeros there, and nothing else has changed for it.

    key = elision.Region("session-key", 32)
    key.fill(lambda view: file.readinto(view))        # an unbuffered file, or a socket
    ...
    signature = key.use(lambda view: sign(view))      # None: the VM was restored, fill it anew

What is left out is the marked memory. Python copies bytes freely: hand the view itself to whoever needs it (hashlib,
hmac, sockets and most libraries in C take one), and make no bytes object of it.

The form is that of c/elision.h: a memfd named "elision:NAME", mapped private, whose first word is not zero while the
region is filled. Linux, Python 3.8 or later.
"""

import ctypes
import mmap
import os
import socket
import struct
import threading

__all__ = ["Region", "Watch"]

_HEAD_BYTES = 64
_NAME_BYTES = 80
_WATCH_PATH = "/run/elision-agent/restored"
_MADV_DONTDUMP = 16


class Region:
    """Marked memory with room for `size` bytes. Threads may share it; a child has its own after a fork."""

    def __init__(self, name, size):
        full = "elision:" + name
        if not name or len(full) >= _NAME_BYTES or any(c < " " or c > "~" or c in "\\`$[]" for c in name):
            raise ValueError("not a name for marked memory")
        if size <= 0:
            raise ValueError("a region needs room")
        whole = -(-(size + _HEAD_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
        file = os.memfd_create(full, os.MFD_CLOEXEC)
        try:
            os.ftruncate(file, whole)
            self._map = mmap.mmap(file, whole, flags=mmap.MAP_PRIVATE)
        finally:
            os.close(file)
        self._map.madvise(getattr(mmap, "MADV_DONTDUMP", _MADV_DONTDUMP))
        self._lock_memory(whole)
        self._size = size
        self._generation = 0
        self._lock = threading.Lock()

    def _lock_memory(self, whole):
        # What is in swap is on a disk and cannot be left out. The limits may not allow it.
        anchor = ctypes.c_char.from_buffer(self._map)
        ctypes.CDLL(None).mlock(ctypes.c_void_p(ctypes.addressof(anchor)), ctypes.c_size_t(whole))
        del anchor

    def fill(self, fill):
        """Calls `fill` with a writable view of the data, and gives what it gives."""
        with self._lock, self._view() as view:
            done = fill(view)
            self._generation += 1
            struct.pack_into("=Q", self._map, 0, self._generation)
            return done

    def use(self, use):
        """Calls `use` with a view of the data, and gives what it gives; None if the data is not there, or went meanwhile."""
        if not self.holds():
            return None
        with self._view() as view, view.toreadonly() as view:
            done = use(view)
        # Asked after the use: what was used before may have been zeros.
        return done if self.holds() else None

    def holds(self):
        """Whether the region still has what it was filled with."""
        return self._generation != 0 and struct.unpack_from("=Q", self._map)[0] == self._generation

    def close(self):
        """Clears the region and gives it back."""
        self._map[:] = bytes(len(self._map))
        self._map.close()

    def _view(self):
        return memoryview(self._map)[_HEAD_BYTES : _HEAD_BYTES + self._size]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Watch:
    """Becomes readable when the VM was restored from a checkpoint, in guests with Elision's agent.

    Wait for it by `select` or `selectors`, and ask `restored()`. Without an agent, making one raises OSError.
    """

    def __init__(self, path=_WATCH_PATH):
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(path)
        except OSError:
            self._socket.close()
            raise

    def fileno(self):
        return self._socket.fileno()

    def restored(self):
        """Whether the VM was restored since this was asked last; does not wait. EOFError when the agent has ended."""
        restored = False
        while True:
            try:
                piece = self._socket.recv(64, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return restored
            if not piece:
                if restored:
                    return True
                raise EOFError("the guest's agent has ended")
            restored = True

    def close(self):
        self._socket.close()

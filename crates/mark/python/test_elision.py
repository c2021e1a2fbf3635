# SPDX-License-Identifier: MIT OR Apache-2.0
"""Tests of elision.py: python3 -m unittest, in this folder."""

import os
import select
import socket
import struct
import tempfile
import threading
import unittest

import elision


class Regions(unittest.TestCase):
    def test_a_region_tells_whether_it_is_filled(self):
        region = elision.Region("test", 5000)
        self.assertIsNone(region.use(bytes))
        region.fill(lambda view: view.__setitem__(slice(None), b"\x09" * 5000))
        self.assertEqual(region.use(lambda view: (len(view), view[4999])), (5000, 9))
        with open("/proc/self/maps") as maps:
            self.assertIn("memfd:elision:test", maps.read())
        # What a restore without the region does to it.
        struct.pack_into("=Q", region._map, 0, 0)
        self.assertIsNone(region.use(bytes))
        region.fill(lambda view: view.__setitem__(0, 8))
        self.assertEqual(region.use(lambda view: view[0]), 8)
        # What goes while it is used was no true data.
        self.assertIsNone(region.use(lambda view: struct.pack_into("=Q", region._map, 0, 0)))
        region.close()

    def test_names_are_what_kernels_take(self):
        for name in ["", "a[b]", "new\nline", "a\\b", "ä", "x" * 72]:
            with self.assertRaises(ValueError, msg=name):
                elision.Region(name, 1)
        elision.Region("x" * 71, 1).close()
        with self.assertRaises(ValueError):
            elision.Region("x", 0)

    def test_a_child_has_its_own(self):
        region = elision.Region("fork", 1)
        region.fill(lambda view: view.__setitem__(0, 1))
        child = os.fork()
        if child == 0:
            region.fill(lambda view: view.__setitem__(0, 2))
            os._exit(region.use(lambda view: view[0]))
        self.assertEqual(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), 2)
        self.assertEqual(region.use(lambda view: view[0]), 1)

    def test_threads_fill_one_after_the_other(self):
        region = elision.Region("threads", 4096)

        def work(n):
            for _ in range(50):
                region.fill(lambda view: view.__setitem__(slice(None), bytes([n]) * 4096))

        threads = [threading.Thread(target=work, args=(n,)) for n in (1, 2, 3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.assertEqual(len(region.use(lambda view: set(view))), 1)
        self.assertEqual(region._generation, 150)


class Watches(unittest.TestCase):
    def test_each_restore_is_told_once_and_the_end_of_the_agent_is_an_error(self):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "restored")
            with self.assertRaises(OSError):
                elision.Watch(path)
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(path)
            listener.listen()
            watch = elision.Watch(path)
            agent = listener.accept()[0]
            self.assertFalse(watch.restored())
            agent.send(b"restored\n")
            self.assertEqual(select.select([watch], [], [], 20)[0], [watch])
            self.assertTrue(watch.restored())
            self.assertFalse(watch.restored())
            agent.close()
            with self.assertRaises(EOFError):
                watch.restored()
            watch.close()
            listener.close()


if __name__ == "__main__":
    unittest.main()

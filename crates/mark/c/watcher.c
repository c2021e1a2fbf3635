/*
 * A program that says when its VM was restored from a checkpoint, told by the guest's agent.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 *     cc -std=gnu11 -static -o watcher watcher.c && ./watcher
 */
#define _GNU_SOURCE
#include "elision.h"

#include <poll.h>
#include <stdio.h>

int main(void)
{
	struct pollfd watch = { -1, POLLIN, 0 };

	setvbuf(stdout, NULL, _IOLBF, 0);
	for (;;) {
		if (watch.fd < 0) {
			watch.fd = elision_watch();
			puts(watch.fd < 0 ? "no agent" : "watching");
		}
		if (watch.fd < 0) {
			sleep(1);
			continue;
		}
		if (poll(&watch, 1, -1) < 0)
			continue;
		switch (elision_restored(watch.fd)) {
		case 1:
			puts("restored");
			break;
		case -1: /* the agent has ended; the next one listens at the same place */
			close(watch.fd);
			watch.fd = -1;
		}
	}
}

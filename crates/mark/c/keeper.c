/*
 * A program that keeps a key in a marked region and notices when a restore has taken it away.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 *     cc -std=gnu11 -static -o keeper keeper.c && ./keeper
 *
 * Each tick is a line: `tick N of key K` while the key is there. After a restore of an image without it there is one
 * line `tick N: the key is gone` and a new key from then on; the count goes on.
 */
#define _GNU_SOURCE
#include "elision.h"

#include <stdlib.h>
#include <time.h>

static void new_key(struct elision_region *key)
{
	FILE *random = fopen("/dev/urandom", "r");
	size_t n = 0;

	if (random) {
		setvbuf(random, NULL, _IONBF, 0); /* no copy of the key in a buffer of the library */
		n = fread(key->data, 1, key->size, random);
		fclose(random);
	}
	if (n != key->size) {
		perror("keeper: no key");
		exit(1);
	}
	elision_filled(key);
}

/* What may be known of the key. */
static uint32_t fingerprint(const struct elision_region *key)
{
	uint32_t sum = 2166136261u;
	size_t i;

	for (i = 0; i < key->size; i++)
		sum = (sum ^ key->data[i]) * 16777619u;
	return sum;
}

int main(void)
{
	const struct timespec pause = { 0, 50 * 1000 * 1000 };
	struct elision_region key;
	unsigned long tick;

	setvbuf(stdout, NULL, _IOLBF, 0);
	if (elision_alloc(&key, "keeper", 64 << 10) != 0) {
		perror("keeper: no marked memory");
		return 1;
	}
	new_key(&key);
	for (tick = 0;; tick++) {
		uint32_t print = fingerprint(&key);

		if (elision_holds(&key)) {
			printf("tick %lu of key %08x\n", tick, print);
		} else {
			printf("tick %lu: the key is gone\n", tick);
			new_key(&key);
		}
		nanosleep(&pause, NULL);
	}
}

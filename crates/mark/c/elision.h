/*
 * elision.h: memory that a checkpoint of the virtual machine leaves out, although the program that has it goes on.
 * SPDX-License-Identifier: MIT OR Apache-2.0
 *
 * A program marks memory. A user who saves its VM with `elision save --exclude region=named` gets an image
 * without that memory: after a restore the program reads zeros there, and nothing else has changed for it. Without
 * such a save a mark costs nothing and does nothing, except that core dumps leave the memory out as well.
 *
 *     struct elision_region key;
 *     if (elision_alloc(&key, "session-key", 32) != 0) return -1;
 *     read_key(key.data, key.size);
 *     elision_filled(&key);
 *     ...
 *     use(copy, key.data);
 *     if (!elision_holds(&key)) {          // asked after the use: what was used before may have been zeros
 *         read_key(key.data, key.size);    // the VM was restored: get the key anew
 *         elision_filled(&key);
 *     }
 *     elision_free(&key);
 *
 * What is left out is the marked memory. Copies elsewhere stay in the image: in registers, on the stack, in
 * buffers of libraries, in pipes and sockets. Clear what you copy, as soon as you can.
 *
 * How a mark looks to the kernel, for those who do without this file:
 *   - a memfd whose name begins with "elision:", all of it; or
 *   - private or shared anonymous memory named so by prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, ...), on kernels
 *     built with CONFIG_ANON_VMA_NAME; or
 *   - MADV_DONTDUMP (`--exclude region=dontdump`) or memfd_secret (`--exclude region=secretmem`).
 *
 * This file is all that a program needs. With ELISION_LIBRARY defined it has declarations only, and the functions are those of
 * libelision: `cc $(pkg-config --cflags --libs elision) ...`.
 *
 * Functions may be called by several threads at once, if each has a region of its own or they take turns.
 *
 * Linux, C11 or C++11. In C define _GNU_SOURCE (or compile as gnu11) for memfd_create and madvise.
 */
#ifndef ELISION_H
#define ELISION_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#define ELISION_PREFIX "elision:"
/* The longest name of a marked area, with its prefix and the byte that ends it. */
#define ELISION_NAME_BYTES 80
/* The program's data begins so far behind the beginning of a region; the word that tells a loss stands before. */
#define ELISION_HEAD_BYTES 64

/* Where the guest's agent tells of restores. */
#define ELISION_WATCH_PATH "/run/elision-agent/restored"

#ifndef PR_SET_VMA
#define PR_SET_VMA 0x53564d41
#endif
#ifndef PR_SET_VMA_ANON_NAME
#define PR_SET_VMA_ANON_NAME 0
#endif
#ifndef MFD_CLOEXEC
#define MFD_CLOEXEC 1U
#endif

/* Where the functions are: in each program, in libelision (which elision.c makes), or there for this program. */
#if defined(ELISION_BUILD)
#define ELISION_API __attribute__((visibility("default")))
#elif !defined(ELISION_LIBRARY)
#define ELISION_API static inline
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* A marked region. */
struct elision_region {
	unsigned char *data; /* what the program uses */
	size_t size;         /* of that, in bytes */
	uint64_t generation; /* how often it was filled */
	void *map;           /* the whole pages */
	size_t map_size;
};

#if defined(ELISION_BUILD) || defined(ELISION_LIBRARY)
/* What each does is said below. */
int elision_mark(void *start, size_t size, const char *name);
int elision_unmark(void *start, size_t size);
int elision_alloc(struct elision_region *region, const char *name, size_t size);
void elision_filled(struct elision_region *region);
int elision_holds(const struct elision_region *region);
int elision_watch(void);
int elision_restored(int fd);
void elision_free(struct elision_region *region);
#endif

#ifndef ELISION_LIBRARY

/* "elision:NAME" in `to`, or -1 with errno if the name is empty, too long, or has characters that kernels refuse. */
static inline int elision_full_name(char to[ELISION_NAME_BYTES], const char *name)
{
	const char *at;
	int n;

	for (at = name; *at; at++) {
		if (*at < 0x20 || *at > 0x7e || strchr("\\`$[]", *at)) {
			errno = EINVAL;
			return -1;
		}
	}
	n = snprintf(to, ELISION_NAME_BYTES, ELISION_PREFIX "%s", name);
	if (at == name || n < 0 || n >= ELISION_NAME_BYTES) {
		errno = EINVAL;
		return -1;
	}
	return 0;
}

/*
 * Marks whole pages of private or shared anonymous memory. `start` must be the beginning of a page; pages are marked up
 * to the one that holds the last byte.
 *
 * Returns 0 if the memory is named: `region=named` and `region=dontdump` find it.
 * Returns 1 if the kernel has no names: `region=dontdump` alone finds it. Memory of elision_alloc has a name always.
 * Returns -1 with errno if it is not marked at all.
 */
ELISION_API int elision_mark(void *start, size_t size, const char *name)
{
	char full[ELISION_NAME_BYTES];

	if (elision_full_name(full, name) != 0 || madvise(start, size, MADV_DONTDUMP) != 0)
		return -1;
	return prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)start, (unsigned long)size,
		     (unsigned long)full) == 0 ? 0 : 1;
}

/* Takes the mark away. Returns 0, or -1 with errno. Fill the memory with something else before. */
ELISION_API int elision_unmark(void *start, size_t size)
{
	(void)prctl(PR_SET_VMA, PR_SET_VMA_ANON_NAME, (unsigned long)start, (unsigned long)size, 0UL);
	return madvise(start, size, MADV_DODUMP);
}

/*
 * A marked region with room for `size` bytes, zero at first. It has its name on every kernel: it is a memfd's memory,
 * mapped private, so that a child has its own after a fork, marked as well. It is locked into memory if the limits
 * allow, as what is in swap is on a disk and cannot be left out.
 *
 * Returns 0, or -1 with errno.
 */
ELISION_API int elision_alloc(struct elision_region *region, const char *name, size_t size)
{
	char full[ELISION_NAME_BYTES];
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	size_t whole;
	void *map;
	int fd, error;

	if (elision_full_name(full, name) != 0)
		return -1;
	if (size == 0 || size > SIZE_MAX - ELISION_HEAD_BYTES - page) {
		errno = EINVAL;
		return -1;
	}
	whole = (size + ELISION_HEAD_BYTES + page - 1) / page * page;
	fd = (int)syscall(SYS_memfd_create, full, MFD_CLOEXEC);
	if (fd < 0)
		return -1;
	if (ftruncate(fd, (off_t)whole) != 0) {
		error = errno;
		close(fd);
		errno = error;
		return -1;
	}
	map = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	error = errno;
	close(fd);
	if (map == MAP_FAILED) {
		errno = error;
		return -1;
	}
	(void)madvise(map, whole, MADV_DONTDUMP);
	(void)mlock(map, whole);
	region->map = map;
	region->map_size = whole;
	region->data = (unsigned char *)map + ELISION_HEAD_BYTES;
	region->size = size;
	region->generation = 0;
	return 0;
}

/* Says that the region is filled. */
ELISION_API void elision_filled(struct elision_region *region)
{
	region->generation++;
	__atomic_store_n((uint64_t *)region->map, region->generation, __ATOMIC_RELEASE);
}

/*
 * Whether the region still has what it was filled with. If so after a use, the use was of true data. If not, the VM
 * was restored from an image without it: fill it and say so.
 */
ELISION_API int elision_holds(const struct elision_region *region)
{
	__atomic_thread_fence(__ATOMIC_ACQUIRE);
	return region->generation != 0 &&
	       __atomic_load_n((const uint64_t *)region->map, __ATOMIC_ACQUIRE) == region->generation;
}

/*
 * A descriptor that becomes readable when the VM was restored from a checkpoint, if the guest has Elision's agent: to be
 * waited for by poll(), and read by elision_restored(). Close it when it is not needed any more.
 *
 * Returns -1 with errno if there is no agent. elision_holds() tells of lost regions without one too.
 */
ELISION_API int elision_watch(void)
{
	struct sockaddr_un address;
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	int error;

	if (fd < 0)
		return -1;
	memset(&address, 0, sizeof(address));
	address.sun_family = AF_UNIX;
	memcpy(address.sun_path, ELISION_WATCH_PATH, sizeof(ELISION_WATCH_PATH));
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
		error = errno;
		close(fd);
		errno = error;
		return -1;
	}
	return fd;
}

/*
 * Whether the VM was restored since the last call; does not wait. Returns 1 or 0, or -1 if the agent has ended: then
 * close the descriptor and call elision_watch() again some time.
 */
ELISION_API int elision_restored(int fd)
{
	char bytes[64];
	int restored = 0;
	ssize_t n;

	for (;;) {
		n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
		if (n > 0)
			restored = 1;
		else if (n == 0)
			return restored ? 1 : -1;
		else if (errno != EINTR)
			return restored || errno == EAGAIN || errno == EWOULDBLOCK ? restored : -1;
	}
}

/* Clears the region and gives it back. */
ELISION_API void elision_free(struct elision_region *region)
{
	volatile unsigned char *byte = (volatile unsigned char *)region->map;
	size_t i;

	for (i = 0; i < region->map_size; i++)
		byte[i] = 0;
	munmap(region->map, region->map_size);
	region->map = region->data = NULL;
	region->map_size = region->size = 0;
	region->generation = 0;
}

#endif /* ELISION_LIBRARY */

#ifdef __cplusplus
}
#endif

#endif

/* tables.h: large tables of zeros that are touched only as far as they are used.
 *
 * Rules of this room
 *   1. Straight from the system and straight back to it. calloc() does the same until the first
 *      large run was freed: then glibc raises its mmap threshold (mallopt(3), M_MMAP_THRESHOLD),
 *      takes the next from an arena, and clears it, which touches all of it: 24 MB for a node that
 *      is opened after another has closed.
 *   2. The length stands before the table, so that whoever closes it need not know.
 */
#ifndef RELAY_TABLES_H
#define RELAY_TABLES_H

#include <stdint.h>
#include <sys/mman.h>

enum { TABLE_HEAD_BYTES = 64 }; /* a cache line: records stay aligned */

static inline void *table_open(uint64_t count, uint64_t item_bytes)
{
    uint64_t size = TABLE_HEAD_BYTES + count * item_bytes;
    uint64_t *run = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (run == MAP_FAILED)
        return 0;
    *run = size;
    return (char *)run + TABLE_HEAD_BYTES;
}

static inline void table_close(void *table)
{
    if (table) {
        uint64_t *run = (uint64_t *)((char *)table - TABLE_HEAD_BYTES);
        munmap(run, *run);
    }
}

#endif

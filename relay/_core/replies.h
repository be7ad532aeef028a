/* replies.h: the fixed texts of the shards' answers.
 *
 * Rules of this room
 *   1. HTTP/1.0 and no length for audio: every player takes it, the connection's end is the end.
 *      A part (206) is HTTP/1.1, which defines it.
 *   2. Refusals are whole and short, so that they fit one send and one small client buffer; each
 *      is a row of a table.
 */
#ifndef RELAY_REPLIES_H
#define RELAY_REPLIES_H

#define NO_CACHE "Cache-Control: no-cache, no-store\r\n"
#define ANY_ORIGIN "Access-Control-Allow-Origin: *\r\n"
#define CLOSES "Connection: close\r\n"
#define PLAIN "Content-Type: text/plain; charset=utf-8\r\n"

static const char REPLY_AUDIO[] =
    "HTTP/%s\r\nServer: Relay\r\nDate: %s\r\n" CLOSES NO_CACHE
    "Pragma: no-cache\r\nExpires: Mon, 26 Jul 1997 05:00:00 GMT\r\n"
    "Accept-Ranges: %s\r\n" ANY_ORIGIN
    "Access-Control-Expose-Headers: icy-metaint, icy-name, icy-br, icy-genre, icy-url, "
    "icy-description, ice-audio-info, Content-Length, Content-Range, Relay-Media-Ms\r\n%.*s";

static const char REPLY_RANGE[] = "Content-Range: bytes %llu-%llu/%llu\r\n";
static const char REPLY_MEDIA[] = "Relay-Media-Ms: %lld\r\n";
static const char REPLY_LENGTH[] = "Content-Length: %u\r\n";

/* Status line, then one more field (or none), then the length of the body and the body. */
static const char REPLY_REFUSED[] =
    "HTTP/1.0 %s\r\n" CLOSES NO_CACHE ANY_ORIGIN PLAIN "%sContent-Length: %d\r\n\r\n%s";

/* The same in two halves, with the location between them. */
#define FOUND_BODY "places are free on another node; go there\n"
static const char REPLY_FOUND[] =
    "HTTP/1.0 302 Found\r\n" CLOSES NO_CACHE ANY_ORIGIN PLAIN "Location: ";
static const char REPLY_FOUND_END[] =
    "\r\nContent-Length: 42\r\n\r\n" FOUND_BODY;
enum { FOUND_BODY_BYTES = sizeof FOUND_BODY - 1 };
_Static_assert(FOUND_BODY_BYTES == 42, "the length that REPLY_FOUND_END tells");

static const char REPLY_PLACE_END[] = "\r\nContent-Length: 0\r\n\r\n";

static const char NO_TEXT[] = "";

/* Why nobody is let in: the rows of the table below. */
enum {
    REFUSE_MISSING, REFUSE_NODE_FULL, REFUSE_MOUNT_FULL, REFUSE_DESCRIPTORS, REFUSE_DRAINING,
    REFUSE_UPSTREAM, REFUSE_QUEUE, REFUSE_METHOD, REFUSE_HEAD, REFUSE_PATH, REFUSE_FIELDS,
    REFUSE_VERSION, REFUSE_ROWS
};

/* What a row is counted as: index into the shard's counters. */
enum {
    REFUSED_NOT_FOUND, REFUSED_FULL, REFUSED_UPSTREAM, REFUSED_MALFORMED, REFUSED_TOO_LARGE,
    REFUSED_METHOD, REFUSED_BUSY, REFUSED_DESCRIPTORS, REFUSED_REASONS
};

enum { MAY_RETRY = 1, MAY_GO_ON = 2, TELLS_METHODS = 4 };

typedef struct {
    int code;                /* of the status; http_head's answers (negated) find their row by it */
    int counted_as;          /* REFUSED_... */
    int traits;              /* MAY_RETRY: Retry-After; MAY_GO_ON: another node may have a place */
    const char *status;
    const char *body;        /* one line that says what to do */
} refusal_t;

static const refusal_t REFUSALS[REFUSE_ROWS] = {
    [REFUSE_MISSING] = {404, REFUSED_NOT_FOUND, 0, "404 Not Found",
        "no such mount here; GET / lists those that are\n"},
    [REFUSE_NODE_FULL] = {503, REFUSED_FULL, MAY_RETRY | MAY_GO_ON, "503 Service Unavailable",
        "this node is full (listeners_max); try again later\n"},
    [REFUSE_MOUNT_FULL] = {503, REFUSED_FULL, MAY_RETRY | MAY_GO_ON, "503 Service Unavailable",
        "this mount is full (listeners_max); try again later\n"},
    [REFUSE_DESCRIPTORS] = {503, REFUSED_DESCRIPTORS, MAY_RETRY | MAY_GO_ON,
        "503 Service Unavailable", "all places are taken; try again later\n"},
    [REFUSE_DRAINING] = {503, REFUSED_BUSY, MAY_RETRY | MAY_GO_ON, "503 Service Unavailable",
        "this node is going down; try another one\n"},
    [REFUSE_UPSTREAM] = {503, REFUSED_UPSTREAM, MAY_RETRY, "503 Service Unavailable",
        "the upstream node is not reachable; try again soon\n"},
    [REFUSE_QUEUE] = {503, REFUSED_BUSY, MAY_RETRY, "503 Service Unavailable",
        "too many requests are waiting; try again soon\n"},
    [REFUSE_METHOD] = {405, REFUSED_METHOD, TELLS_METHODS, "405 Method Not Allowed",
        "a mount takes GET, HEAD, PUT and SOURCE\n"},
    [REFUSE_HEAD] = {400, REFUSED_MALFORMED, 0, "400 Bad Request",
        "this is not a request head of HTTP/1.x\n"},
    [REFUSE_PATH] = {414, REFUSED_TOO_LARGE, 0, "414 URI Too Long",
        "the bound of a path is 255 bytes\n"},
    [REFUSE_FIELDS] = {431, REFUSED_TOO_LARGE, 0, "431 Request Header Fields Too Large",
        "the bound is 8192 bytes and 64 fields\n"},
    [REFUSE_VERSION] = {505, REFUSED_MALFORMED, 0, "505 HTTP Version Not Supported",
        "this node speaks HTTP/1.0 and HTTP/1.1\n"},
};

#endif

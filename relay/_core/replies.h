/* replies.h: the fixed texts of the shards' answers.
 *
 * Rules of this room
 *   1. HTTP/1.0 and no length for audio: every player takes it, the connection's end is the end.
 *   2. Refusals are whole and short, so that they fit one send and one small client buffer.
 */
#ifndef RELAY_REPLIES_H
#define RELAY_REPLIES_H

#define NO_CACHE "Cache-Control: no-cache, no-store\r\n"
#define ANY_ORIGIN "Access-Control-Allow-Origin: *\r\n"
#define CLOSES "Connection: close\r\n"
#define PLAIN "Content-Type: text/plain; charset=utf-8\r\n"

static const char REPLY_200[] =
    "HTTP/1.0 200 OK\r\nServer: Relay\r\nDate: %s\r\n" CLOSES NO_CACHE
    "Pragma: no-cache\r\nExpires: Mon, 26 Jul 1997 05:00:00 GMT\r\n"
    "Accept-Ranges: none\r\n" ANY_ORIGIN
    "Access-Control-Expose-Headers: icy-metaint, icy-name, icy-br, icy-genre, icy-url, "
    "icy-description, ice-audio-info, Content-Length, Content-Range\r\n%.*s";

static const char REPLY_REFUSED[] =
    "HTTP/1.0 %.*s\r\n" CLOSES NO_CACHE ANY_ORIGIN PLAIN "%sContent-Length: %d\r\n\r\n%s";

static const char REPLY_503[] =
    "HTTP/1.0 503 Service Unavailable\r\n" CLOSES NO_CACHE ANY_ORIGIN PLAIN
    "Retry-After: 5\r\nContent-Length: 45\r\n\r\nall places are taken; try again in a minute.\n";

static const char NO_TEXT[] = "";

#endif

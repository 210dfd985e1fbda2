// html.h: the text of a page of HTML or XHTML, read in pieces.
//
//     html_reader h = {0};
//     if (html_feed(&h, bytes, n, last)) ...          // -1: no memory, or h.refused says what it cannot be
//     ... h.out[0 .. h.bytes) is text that is certain; set h.bytes = 0 when it has been taken
//     html_free(&h);
//
// What is text, and what becomes of the rest:
//     tags, comments, <!...>, <?...?>      left out
//     script style iframe noembed noframes noscript template svg    left out with all that is in them
//     elements of HTML_BLOCKS (p, div, li, h1 ...)    begin and end a line
//     br                                   ends a line; two of them leave one empty
//     td, th                               a space before
//     white space                          one space, none at the ends of a line; in pre as it is
//     &amp; &mdash; &#8212; &#x2014; ...   the character: HTML 4's names, XHTML's apos, and the capitals
//                                          that browsers know of six of them. Names of characters below 256
//                                          need no semicolon. What is no such name stays as it is written.
//                                          Numbers 128 to 159 are Windows' characters, of none U+FFFD
// An element that is never closed ends with the page. A tag that the page ends in is left out.
//
// Bytes are UTF-8 unless a <meta charset> or its older form says otherwise: ISO-8859-1 and Windows-1252,
// which browsers take for the same, are converted; other names are refused. Nothing is done about a page
// that lies.
//
// How the page is cut into pieces changes nothing. Memory: a few hundred bytes, and what the caller leaves in
// out. Needs libc alone.
#ifndef GPT2_SP_HTML_H
#define GPT2_SP_HTML_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

enum { HTML_NAME = 16, HTML_KEPT = 512 };   // bytes of a tag's name that count; of a reference or a meta tag

// Where the reader stands.
typedef enum {
    HTML_TEXT,
    HTML_REFERENCE,     // behind &
    HTML_OPEN,          // behind <
    HTML_CLOSE,         // behind </
    HTML_TAG,           // in a tag's name
    HTML_ATTRIBUTES,    // behind it
    HTML_DECLARATION,   // behind <!
    HTML_DASH,          // behind <!-
    HTML_COMMENT,       // behind <!--
    HTML_BOGUS,         // in what ends at the next >
    HTML_RAW,           // in script and its like, where only the end tag counts
    HTML_RAW_OPEN,      // behind < there
    HTML_RAW_CLOSE      // behind </ there, in a name
} html_state;

typedef struct {   // starts from zeros
    char* out;     // text that is certain
    size_t bytes, capacity;
    char refused[64];   // the charset that cannot be read; empty: none

    html_state state;
    int closing, slash;   // the tag begins with </; its last byte is /
    char quote;           // the quote that the attribute's value ends with; '=' behind one
    char name[HTML_NAME];
    size_t name_bytes;
    char kept[HTML_KEPT];   // a reference, or the attributes of a meta tag
    size_t kept_bytes;
    char left_out[HTML_NAME];   // the element whose text is left out; empty: none
    int depth;                  // elements of that name inside each other
    int dashes;                 // at the end of a comment so far
    int windows;                // bytes above 127 are Windows-1252's
    int pre, fresh;             // pre elements inside each other; the last has just begun
    int lines, breaks, space;   // due before the next character: a line's end, ends of br, a space
    int begun;                  // there was a character
    char last;                  // the last byte of the text
} html_reader;

// Writes code point u as UTF-8, 1 to 4 bytes, and returns the place behind.
GPT2_SP_LEAF char* html_utf8(char* out, long u) {
    if (u < 0x80) {
        *out++ = (char)u;
        return out;
    }
    if (u < 0x800) {
        *out++ = (char)(0xC0 | (u >> 6));
    } else {
        if (u < 0x10000) {
            *out++ = (char)(0xE0 | (u >> 12));
        } else {
            *out++ = (char)(0xF0 | (u >> 18));
            *out++ = (char)(0x80 | ((u >> 12) & 63));
        }
        *out++ = (char)(0x80 | ((u >> 6) & 63));
    }
    *out++ = (char)(0x80 | (u & 63));
    return out;
}

// ================================================================================
// tables

// Elements that begin and end a line.
GPT2_SP_LEAF const char HTML_BLOCKS[] =
    " address article aside blockquote body caption center dd details dialog dir div dl dt fieldset "
    "figcaption "
    "figure footer form frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html legend li main menu nav ol "
    "optgroup option p pre search section summary table tbody tfoot thead title tr ul ";
// Elements that are left out with what is in them; of the first only their own end tag is looked for.
GPT2_SP_LEAF const char HTML_RAW_TEXT[] = " script style iframe noembed noframes ";
GPT2_SP_LEAF const char HTML_LEFT_OUT[] = " noscript template svg ";

typedef struct {
    const char* name;
    uint16_t code;
} html_name;

// In the order of their bytes. Made by
//     python3 -c 'import html.entities as h; n = dict(h.name2codepoint, apos=39, AMP=38, LT=60, GT=62,
//         QUOT=34, COPY=169, REG=174); print([(k, n[k]) for k in sorted(n)])'
// clang-format off
GPT2_SP_LEAF const html_name HTML_NAMES[] = {
    {"AElig", 198}, {"AMP", 38}, {"Aacute", 193}, {"Acirc", 194}, {"Agrave", 192}, {"Alpha", 913},
    {"Aring", 197}, {"Atilde", 195}, {"Auml", 196}, {"Beta", 914}, {"COPY", 169}, {"Ccedil", 199},
    {"Chi", 935}, {"Dagger", 8225}, {"Delta", 916}, {"ETH", 208}, {"Eacute", 201}, {"Ecirc", 202},
    {"Egrave", 200}, {"Epsilon", 917}, {"Eta", 919}, {"Euml", 203}, {"GT", 62}, {"Gamma", 915},
    {"Iacute", 205}, {"Icirc", 206}, {"Igrave", 204}, {"Iota", 921}, {"Iuml", 207}, {"Kappa", 922},
    {"LT", 60}, {"Lambda", 923}, {"Mu", 924}, {"Ntilde", 209}, {"Nu", 925}, {"OElig", 338}, {"Oacute", 211},
    {"Ocirc", 212}, {"Ograve", 210}, {"Omega", 937}, {"Omicron", 927}, {"Oslash", 216}, {"Otilde", 213},
    {"Ouml", 214}, {"Phi", 934}, {"Pi", 928}, {"Prime", 8243}, {"Psi", 936}, {"QUOT", 34}, {"REG", 174},
    {"Rho", 929}, {"Scaron", 352}, {"Sigma", 931}, {"THORN", 222}, {"Tau", 932}, {"Theta", 920},
    {"Uacute", 218}, {"Ucirc", 219}, {"Ugrave", 217}, {"Upsilon", 933}, {"Uuml", 220}, {"Xi", 926},
    {"Yacute", 221}, {"Yuml", 376}, {"Zeta", 918}, {"aacute", 225}, {"acirc", 226}, {"acute", 180},
    {"aelig", 230}, {"agrave", 224}, {"alefsym", 8501}, {"alpha", 945}, {"amp", 38}, {"and", 8743},
    {"ang", 8736}, {"apos", 39}, {"aring", 229}, {"asymp", 8776}, {"atilde", 227}, {"auml", 228},
    {"bdquo", 8222}, {"beta", 946}, {"brvbar", 166}, {"bull", 8226}, {"cap", 8745}, {"ccedil", 231},
    {"cedil", 184}, {"cent", 162}, {"chi", 967}, {"circ", 710}, {"clubs", 9827}, {"cong", 8773},
    {"copy", 169}, {"crarr", 8629}, {"cup", 8746}, {"curren", 164}, {"dArr", 8659}, {"dagger", 8224},
    {"darr", 8595}, {"deg", 176}, {"delta", 948}, {"diams", 9830}, {"divide", 247}, {"eacute", 233},
    {"ecirc", 234}, {"egrave", 232}, {"empty", 8709}, {"emsp", 8195}, {"ensp", 8194}, {"epsilon", 949},
    {"equiv", 8801}, {"eta", 951}, {"eth", 240}, {"euml", 235}, {"euro", 8364}, {"exist", 8707},
    {"fnof", 402}, {"forall", 8704}, {"frac12", 189}, {"frac14", 188}, {"frac34", 190}, {"frasl", 8260},
    {"gamma", 947}, {"ge", 8805}, {"gt", 62}, {"hArr", 8660}, {"harr", 8596}, {"hearts", 9829},
    {"hellip", 8230}, {"iacute", 237}, {"icirc", 238}, {"iexcl", 161}, {"igrave", 236}, {"image", 8465},
    {"infin", 8734}, {"int", 8747}, {"iota", 953}, {"iquest", 191}, {"isin", 8712}, {"iuml", 239},
    {"kappa", 954}, {"lArr", 8656}, {"lambda", 955}, {"lang", 9001}, {"laquo", 171}, {"larr", 8592},
    {"lceil", 8968}, {"ldquo", 8220}, {"le", 8804}, {"lfloor", 8970}, {"lowast", 8727}, {"loz", 9674},
    {"lrm", 8206}, {"lsaquo", 8249}, {"lsquo", 8216}, {"lt", 60}, {"macr", 175}, {"mdash", 8212},
    {"micro", 181}, {"middot", 183}, {"minus", 8722}, {"mu", 956}, {"nabla", 8711}, {"nbsp", 160},
    {"ndash", 8211}, {"ne", 8800}, {"ni", 8715}, {"not", 172}, {"notin", 8713}, {"nsub", 8836},
    {"ntilde", 241}, {"nu", 957}, {"oacute", 243}, {"ocirc", 244}, {"oelig", 339}, {"ograve", 242},
    {"oline", 8254}, {"omega", 969}, {"omicron", 959}, {"oplus", 8853}, {"or", 8744}, {"ordf", 170},
    {"ordm", 186}, {"oslash", 248}, {"otilde", 245}, {"otimes", 8855}, {"ouml", 246}, {"para", 182},
    {"part", 8706}, {"permil", 8240}, {"perp", 8869}, {"phi", 966}, {"pi", 960}, {"piv", 982},
    {"plusmn", 177}, {"pound", 163}, {"prime", 8242}, {"prod", 8719}, {"prop", 8733}, {"psi", 968},
    {"quot", 34}, {"rArr", 8658}, {"radic", 8730}, {"rang", 9002}, {"raquo", 187}, {"rarr", 8594},
    {"rceil", 8969}, {"rdquo", 8221}, {"real", 8476}, {"reg", 174}, {"rfloor", 8971}, {"rho", 961},
    {"rlm", 8207}, {"rsaquo", 8250}, {"rsquo", 8217}, {"sbquo", 8218}, {"scaron", 353}, {"sdot", 8901},
    {"sect", 167}, {"shy", 173}, {"sigma", 963}, {"sigmaf", 962}, {"sim", 8764}, {"spades", 9824},
    {"sub", 8834}, {"sube", 8838}, {"sum", 8721}, {"sup", 8835}, {"sup1", 185}, {"sup2", 178},
    {"sup3", 179}, {"supe", 8839}, {"szlig", 223}, {"tau", 964}, {"there4", 8756}, {"theta", 952},
    {"thetasym", 977}, {"thinsp", 8201}, {"thorn", 254}, {"tilde", 732}, {"times", 215}, {"trade", 8482},
    {"uArr", 8657}, {"uacute", 250}, {"uarr", 8593}, {"ucirc", 251}, {"ugrave", 249}, {"uml", 168},
    {"upsih", 978}, {"upsilon", 965}, {"uuml", 252}, {"weierp", 8472}, {"xi", 958}, {"yacute", 253},
    {"yen", 165}, {"yuml", 255}, {"zeta", 950}, {"zwj", 8205}, {"zwnj", 8204},
};
// clang-format on

// What Windows-1252 has at 128 to 159; 0: nothing.
GPT2_SP_LEAF const uint16_t HTML_WINDOWS[32] = {0x20AC, 0, 0x201A, 0x192, 0x201E, 0x2026, 0x2020, 0x2021,
    0x2C6, 0x2030, 0x160, 0x2039, 0x152, 0, 0x17D, 0, 0, 0x2018, 0x2019, 0x201C, 0x201D, 0x2022, 0x2013,
    0x2014, 0x2DC, 0x2122, 0x161, 0x203A, 0x153, 0, 0x17E, 0x178};

// Is `name` a word of the list, between blanks?
GPT2_SP_LEAF int html_among(const char* list, const char* name) {
    size_t n = strlen(name);
    for (const char* p = list; n && (p = strstr(p, name)) != NULL; p += n)
        if (p > list && p[-1] == ' ' && p[n] == ' ') return 1;
    return 0;
}

// The character of the name of n bytes, 0 for none.
GPT2_SP_LEAF long html_named(const char* name, size_t n) {
    size_t low = 0, high = sizeof HTML_NAMES / sizeof *HTML_NAMES;
    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = strncmp(HTML_NAMES[middle].name, name, n);
        if (order == 0) order = HTML_NAMES[middle].name[n] != 0;
        if (order == 0) return HTML_NAMES[middle].code;
        if (order < 0) low = middle + 1;
        else high = middle;
    }
    return 0;
}

// ================================================================================
// text

GPT2_SP_LEAF int html_is_space(int c) { return c == ' ' || (c >= '\t' && c <= '\r' && c != '\v'); }
GPT2_SP_LEAF int html_is_letter(int c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
GPT2_SP_LEAF char html_small(char c) { return c >= 'A' && c <= 'Z' ? (char)(c - 'A' + 'a') : c; }

GPT2_SP_LEAF int html_append(html_reader* h, const char* bytes, size_t n) {
    if (h->capacity - h->bytes < n) {
        size_t wanted = 2 * h->capacity + n + 4096;
        char* grown = (char*)realloc(h->out, wanted);
        if (!grown) return -1;
        h->out = grown;
        h->capacity = wanted;
    }
    memcpy(h->out + h->bytes, bytes, n);
    h->bytes += n;
    h->last = bytes[n - 1];
    return 0;
}

// Writes the line ends or the space that are due.
GPT2_SP_LEAF int html_due(html_reader* h) {
    int ends = h->breaks > h->lines ? h->breaks : h->lines, status = 0;
    if (h->begun && ends > 0) {
        if (h->breaks <= 1 && h->last == '\n') ends = 0;   // in pre the line has ended already
        status = ends > 0 ? html_append(h, "\n\n", ends > 1 ? 2 : 1) : 0;
    } else if (h->begun && h->space) {
        status = html_append(h, " ", 1);
    }
    h->lines = h->breaks = h->space = 0;
    return status;
}

// Adds a character of n bytes.
GPT2_SP_LEAF int html_put(html_reader* h, const char* bytes, size_t n) {
    int space = n == 1 && html_is_space(*bytes), fresh = h->fresh;
    if (h->left_out[0]) return 0;
    h->fresh = 0;
    if (space && !h->pre) h->space = 1;
    if (space && (!h->pre || !h->begun || *bytes == '\r' || (fresh && *bytes == '\n'))) return 0;
    if (html_due(h)) return -1;
    h->begun = 1;
    return html_append(h, bytes, n);
}

// Adds a byte of the page.
GPT2_SP_LEAF int html_byte(html_reader* h, char c) {
    char utf8[4];
    unsigned char byte = (unsigned char)c;
    if (!h->windows || byte < 128) return html_put(h, &c, 1);
    long u = byte < 160 ? HTML_WINDOWS[byte - 128] : byte;
    return html_put(h, utf8, (size_t)(html_utf8(utf8, u ? u : 0xFFFD) - utf8));
}

// The character of the number behind &#, of up to n bytes: digits, or x and hexadecimal ones. *used is how
// many it has; -1 for none.
GPT2_SP_LEAF long html_number(const char* p, size_t n, size_t* used) {
    long u = 0;
    int base = n > 0 && (*p == 'x' || *p == 'X') ? 16 : 10;
    size_t first = base == 16, i = first;
    for (; i < n; i++) {
        char c = html_small(p[i]);
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : 16;
        if (digit >= base) break;
        if (u <= 0x10FFFF) u = u * base + digit;
    }
    if (i == first) return -1;
    *used = i;
    if (u >= 128 && u < 160 && HTML_WINDOWS[u - 128]) return HTML_WINDOWS[u - 128];
    return u == 0 || u > 0x10FFFF || (u >= 0xD800 && u <= 0xDFFF) ? 0xFFFD : u;
}

// Ends the reference in h->kept: adds its character, and what follows it there, or all as it is written.
// `closed`: a semicolon comes next. Returns 1 if that belongs to it, else 0, or -1.
GPT2_SP_LEAF int html_reference(html_reader* h, int closed) {
    const char* p = h->kept;
    size_t n = h->kept_bytes, used = 0;
    long u = -1;
    char utf8[4];
    if (n > 0 && *p == '#') {
        u = html_number(p + 1, n - 1, &used);
        used += u >= 0;   // the #
    } else {              // the longest name
        for (used = n; used > 0; used--) {
            u = html_named(p, used);
            if (u > 0 && (u < 256 || (closed && used == n))) break;
        }
        if (used == 0) u = -1;
    }
    h->state = HTML_TEXT;
    int status = u < 0 ? html_put(h, "&", 1) : html_put(h, utf8, (size_t)(html_utf8(utf8, u) - utf8));
    for (size_t i = used; status == 0 && i < n; i++) status = html_put(h, p + i, 1);
    h->kept_bytes = 0;
    return status ? -1 : u >= 0 && used == n && closed;
}

// ================================================================================
// tags

// The charset that a meta tag's attributes, in small letters, speak of.
GPT2_SP_LEAF int html_charset(html_reader* h) {
    static const char utf8[] = " utf-8 utf8 us-ascii ascii ";
    static const char windows[] = " iso-8859-1 iso8859-1 latin1 latin-1 windows-1252 cp1252 ";
    char name[48];
    size_t n = 0;
    h->kept[h->kept_bytes] = 0;
    const char* p = strstr(h->kept, "charset");
    if (!p) return 0;
    for (p += 7; html_is_space(*p); p++) continue;
    if (*p != '=') return 0;
    for (p++; html_is_space(*p) || *p == '"' || *p == '\''; p++) continue;
    while (*p && !html_is_space(*p) && !strchr("\"';/>", *p) && n + 1 < sizeof name) name[n++] = *p++;
    name[n] = 0;
    h->windows = html_among(windows, name);
    if (n == 0 || h->windows || html_among(utf8, name)) return 0;
    memcpy(h->refused, name, n + 1);
    return -1;
}

// A tag is complete: what it means for the text.
GPT2_SP_LEAF int html_tag(html_reader* h) {
    const char* name = h->name;
    int raw = html_among(HTML_RAW_TEXT, name), block = html_among(HTML_BLOCKS, name);
    h->state = HTML_TEXT;
    if (h->left_out[0]) {
        if (strcmp(name, h->left_out) == 0 && !h->slash) h->depth += h->closing ? -1 : 1;
        if (h->depth == 0) h->left_out[0] = 0;
        return 0;
    }
    if (!h->closing && !h->slash && (raw || html_among(HTML_LEFT_OUT, name))) {
        memcpy(h->left_out, name, HTML_NAME);
        h->depth = 1;
        if (raw) h->state = HTML_RAW;
    }
    if (strcmp(name, "pre") == 0 && !h->slash) {
        h->fresh = !h->closing;
        if (!h->closing) h->pre++;
        else if (h->pre > 0) h->pre--;
    }
    if (block) h->lines = 1;
    if (strcmp(name, "br") == 0) h->breaks++;
    if (strcmp(name, "td") == 0 || strcmp(name, "th") == 0) h->space = 1;
    return !h->closing && strcmp(name, "meta") == 0 ? html_charset(h) : 0;
}

// A tag, or a declaration, begins.
GPT2_SP_LEAF void html_begin(html_reader* h, html_state state, int closing) {
    h->state = state;
    h->closing = closing;
    h->slash = h->dashes = 0;
    h->quote = 0;
    h->name_bytes = h->kept_bytes = 0;
    memset(h->name, 0, sizeof h->name);
}

// A byte of a tag behind its first letter. Returns -1 where the page is refused.
GPT2_SP_LEAF int html_in_tag(html_reader* h, char c) {
    if (h->state == HTML_TAG && !html_is_space(c) && c != '/' && c != '>') {
        if (h->name_bytes + 1 < HTML_NAME) h->name[h->name_bytes] = html_small(c);
        else h->name[0] = '?';   // too long for any name that means something here
        h->name_bytes++;
        return 0;
    }
    h->state = HTML_ATTRIBUTES;
    if (h->name[0] == 'm' && h->kept_bytes + 1 < HTML_KEPT) h->kept[h->kept_bytes++] = html_small(c);
    if (h->quote == '"' || h->quote == '\'') {
        if (c == h->quote) h->quote = 0;
        return 0;
    }
    if (c == '>') return html_tag(h);
    if ((c == '"' || c == '\'') && h->quote == '=') h->quote = c;
    else if (c == '=') h->quote = '=';
    else if (!html_is_space(c)) h->quote = 0;
    h->slash = c == '/';
    return 0;
}

// A byte behind <! up to the > that ends what begins there.
GPT2_SP_LEAF void html_in_declaration(html_reader* h, char c) {
    if (h->state == HTML_DECLARATION && c == '-') h->state = HTML_DASH;
    else if (h->state == HTML_DASH && c == '-') h->state = HTML_COMMENT, h->dashes = 2;
    else if (h->state == HTML_COMMENT) {
        if (c == '>' && h->dashes >= 2) h->state = HTML_TEXT;
        h->dashes = c == '-' ? h->dashes + 1 : 0;
    } else h->state = c == '>' ? HTML_TEXT : HTML_BOGUS;
}

// A byte inside an element of which only the end tag counts.
GPT2_SP_LEAF void html_in_raw(html_reader* h, char c) {
    if (h->state == HTML_RAW_CLOSE && (html_is_space(c) || c == '/' || c == '>') &&
        strcmp(h->name, h->left_out) == 0) {
        h->state = HTML_TAG;
        html_in_tag(h, c);
    } else if (h->state == HTML_RAW_CLOSE && html_is_letter(c)) {
        if (h->name_bytes + 1 < HTML_NAME) h->name[h->name_bytes++] = html_small(c);
        else h->name[0] = '?';
    } else if (h->state == HTML_RAW_OPEN && c == '/') html_begin(h, HTML_RAW_CLOSE, 1);
    else h->state = c == '<' ? HTML_RAW_OPEN : HTML_RAW;
}

// A byte of the page, where the reader stands. Returns -1 on error.
GPT2_SP_LEAF int html_step(html_reader* h, char c) {
    int taken;
    switch (h->state) {
    case HTML_REFERENCE:
        if ((html_is_letter(c) || (c >= '0' && c <= '9') || (c == '#' && h->kept_bytes == 0)) &&
            h->kept_bytes < 32) {
            h->kept[h->kept_bytes++] = c;
            return 0;
        }
        taken = html_reference(h, c == ';');
        return taken != 0 ? (taken < 0 ? -1 : 0) : html_step(h, c);
    case HTML_OPEN:
        if (c == '/') html_begin(h, HTML_CLOSE, 1);
        else if (c == '!') html_begin(h, HTML_DECLARATION, 0);
        else if (c == '?') html_begin(h, HTML_BOGUS, 0);
        else if (html_is_letter(c)) {
            html_begin(h, HTML_TAG, 0);
            return html_in_tag(h, c);
        } else {   // no tag: what was written
            h->state = HTML_TEXT;
            return html_put(h, "<", 1) ? -1 : html_step(h, c);
        }
        return 0;
    case HTML_CLOSE:
        if (html_is_letter(c)) {
            h->state = HTML_TAG;
            return html_in_tag(h, c);
        }
        h->state = c == '>' ? HTML_TEXT : HTML_BOGUS;
        return 0;
    case HTML_TAG:
    case HTML_ATTRIBUTES: return html_in_tag(h, c);
    case HTML_DECLARATION:
    case HTML_DASH:
    case HTML_COMMENT:
    case HTML_BOGUS: html_in_declaration(h, c); return 0;
    case HTML_RAW:
    case HTML_RAW_OPEN:
    case HTML_RAW_CLOSE: html_in_raw(h, c); return 0;
    case HTML_TEXT: break;
    }
    if (c != '<' && c != '&') return html_byte(h, c);
    h->state = c == '<' ? HTML_OPEN : HTML_REFERENCE;
    return 0;
}

// Reads n more bytes of the page; `last`: it ends with them. Adds to h->out.
GPT2_SP_LEAF int html_feed(html_reader* h, const char* bytes, size_t n, int last) {
    for (size_t i = 0; i < n; i++)
        if (html_step(h, bytes[i])) return -1;
    if (!last) return 0;
    if (h->state == HTML_REFERENCE && html_reference(h, 0) < 0) return -1;
    if (h->state == HTML_OPEN && html_put(h, "<", 1)) return -1;
    if (h->begun && (h->lines || h->breaks) && h->last != '\n') return html_append(h, "\n", 1);
    return 0;
}

GPT2_SP_LEAF void html_free(html_reader* h) {
    free(h->out);
    memset(h, 0, sizeof *h);
}

#endif

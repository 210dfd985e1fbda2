// svg.h: a small writer of SVG pictures: boxes, lines, arrows and texts.
//
//     svg_open(out, 400, 100, "A title");
//     svg_rect(out, "op", "#88aaff", 10, 10, 80, 20, "what the pointer shows there");
//     svg_text(out, 11, SVG_MIDDLE, 50, 24, "q%dk%d", q, k);
//     svg_close(out);
//
// A picture is one XML document that needs nothing else: no script, no style sheet, no font but the viewer's
// sans-serif. It has a white ground of its own, so that it reads the same where the page around it is dark.
// Lengths are those of the viewBox, x to the right and y down; numbers are written with two decimals. Texts
// are escaped here. Errors of the stream stay in the stream: its owner looks at ferror or fclose.
//
// SVG_MARK begins every picture: by it a program knows its own files from others.

#ifndef GPT2_SP_SVG_H
#define GPT2_SP_SVG_H

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#ifndef GPT2_SP_LEAF
#define GPT2_SP_LEAF static __attribute__((unused))
#endif

#define SVG_MARK "<!--gpt2_sp-->\n"
#define SVG_INK "#1f2933"       // of texts and axes
#define SVG_FAINT "#c3c9d0"     // of lines behind
#define SVG_IDLE "url(#idle)"   // a fill: grey hatching

enum { SVG_START, SVG_MIDDLE, SVG_END };   // where a text stands to its x

// Writes a text as the content of an element or an attribute: what XML would take for its own is escaped, and
// characters that it does not allow are left out.
GPT2_SP_LEAF void svg_escaped(FILE* out, const char* text) {
    for (; *text; text++) {
        const char* entity = *text == '<' ? "&lt;"
            : *text == '>'                ? "&gt;"
            : *text == '&'                ? "&amp;"
            : *text == '"'                ? "&quot;"
                                          : NULL;
        if (entity) fputs(entity, out);
        else if ((unsigned char)*text >= ' ') fputc(*text, out);
    }
}

// Begins a picture of width x height with a title, which viewers show as its name.
GPT2_SP_LEAF void svg_open(FILE* out, double width, double height, const char* title) {
    fprintf(out,
        SVG_MARK
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\" "
        "font-family=\"sans-serif\" role=\"img\">\n<title>",
        width, height, width, height);
    svg_escaped(out, title);
    fprintf(out,
        "</title>\n"
        "<defs><pattern id=\"idle\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
        "<rect width=\"6\" height=\"6\" fill=\"#f3f4f6\"/>"
        "<path d=\"M-1 1L1 -1M0 6L6 0M5 7L7 5\" stroke=\"#b8bfc8\" stroke-width=\"1\"/></pattern></defs>\n"
        "<rect class=\"ground\" x=\"0\" y=\"0\" width=\"%.0f\" height=\"%.0f\" fill=\"#ffffff\"/>\n",
        width, height);
}
GPT2_SP_LEAF void svg_close(FILE* out) { fputs("</svg>\n", out); }

// The end of an element, with what the pointer shows there; tip NULL: nothing.
GPT2_SP_LEAF void svg_tip(FILE* out, const char* element, const char* tip) {
    if (!tip) {
        fputs("/>\n", out);
        return;
    }
    fputs("><title>", out);
    svg_escaped(out, tip);
    fprintf(out, "</title></%s>\n", element);
}

// A filled box with a thin edge. kind, the element's class, says what it stands for.
GPT2_SP_LEAF void svg_rect(FILE* out, const char* kind, const char* fill, double x, double y, double width,
    double height, const char* tip) {
    fprintf(out,
        "<rect class=\"%s\" x=\"%.2f\" y=\"%.2f\" width=\"%.2f\" height=\"%.2f\" fill=\"%s\" "
        "stroke=\"#ffffff\" stroke-width=\"0.5\"",
        kind, x, y, width, height, fill);
    svg_tip(out, "rect", tip);
}

GPT2_SP_LEAF void svg_line(
    FILE* out, const char* kind, const char* stroke, double x1, double y1, double x2, double y2) {
    fprintf(out,
        "<line class=\"%s\" x1=\"%.2f\" y1=\"%.2f\" x2=\"%.2f\" y2=\"%.2f\" stroke=\"%s\" "
        "stroke-width=\"1\"/>\n",
        kind, x1, y1, x2, y2, stroke);
}

// An arrow of a given opacity, with its head at (x2, y2): one element.
GPT2_SP_LEAF void svg_arrow(FILE* out, const char* kind, const char* stroke, double opacity, double x1,
    double y1, double x2, double y2, const char* tip) {
    const double length = hypot(x2 - x1, y2 - y1), head = 5, half = 2;
    const double ux = length > 0 ? (x2 - x1) / length : 1, uy = length > 0 ? (y2 - y1) / length : 0;
    const double bx = x2 - head * ux, by = y2 - head * uy;   // the middle of the head's base
    fprintf(out,
        "<path class=\"%s\" d=\"M%.2f %.2fL%.2f %.2fM%.2f %.2fL%.2f %.2fL%.2f %.2fZ\" stroke=\"%s\" "
        "fill=\"%s\" stroke-width=\"0.8\" opacity=\"%.2f\"",
        kind, x1, y1, bx, by, bx - half * uy, by + half * ux, x2, y2, bx + half * uy, by - half * ux, stroke,
        stroke, opacity);
    svg_tip(out, "path", tip);
}

// A text of one line, `size` high; y is its base line.
__attribute__((format(printf, 6, 7))) GPT2_SP_LEAF void svg_text(
    FILE* out, double size, int anchor, double x, double y, const char* format, ...) {
    static const char* const anchors[] = {"start", "middle", "end"};
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fprintf(out, "<text x=\"%.2f\" y=\"%.2f\" font-size=\"%.4g\" text-anchor=\"%s\" fill=\"" SVG_INK "\">", x,
        y, size, anchors[anchor]);
    svg_escaped(out, text);
    fputs("</text>\n", out);
}
// The same in the middle of x, with light around it that parts it from lines that cross it.
GPT2_SP_LEAF void svg_label(FILE* out, double size, double x, double y, const char* text) {
    fprintf(out,
        "<text x=\"%.2f\" y=\"%.2f\" font-size=\"%.4g\" text-anchor=\"middle\" fill=\"none\" "
        "stroke=\"#ffffff\" stroke-width=\"2.5\" stroke-linejoin=\"round\" opacity=\"0.65\">",
        x, y, size);
    svg_escaped(out, text);
    fputs("</text>\n", out);
    svg_text(out, size, SVG_MIDDLE, x, y, "%s", text);
}
// The width of a text, at most: that of so many of the widest digits of common sans-serif fonts.
GPT2_SP_LEAF double svg_text_width(const char* text, double size) {
    return 0.64 * size * (double)strlen(text);
}

// Colour number i of n, from red by green to violet, light enough for dark text: "#rrggbb".
GPT2_SP_LEAF void svg_colour(char out[8], int i, int n) {
    const double light = 0.76, chroma = 0.34, sixth = n > 1 ? 4.75 * i / (n - 1) : 3.5;
    int rgb[3];
    for (int c = 0; c < 3; c++) {
        // the hexagon of hues: each of red, green, blue is full for two sixths, and rises and falls for one
        double at = fmod(sixth + 6 - 2 * c, 6), part = fmax(0, fmin(1, fabs(at - 3) - 1));
        rgb[c] = (int)(255 * (light + chroma * (part - 0.5)) + 0.5);
    }
    snprintf(out, 8, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
}

#endif

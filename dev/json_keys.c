// json_keys.c: reads lines of standard input; each must be one JSON object with these keys ("a.b": b inside
// a).
//
//     ./train_gpt2_sp plan --json | build/json_keys parameters memory_bytes.total
//     build/json_keys step loss < runs/a/log.jsonl
//
// Prints the number of lines, or what is wrong and where (exit status 1).
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdio.h>
#include <stdlib.h>

#include "../data/json.h"

// Finds `key` in the object v. 1 and the value, or 0.
static int member(json_span v, const char* key, size_t length, json_span* value) {
    json_iter it;
    json_span name;
    char wanted[128];
    snprintf(wanted, sizeof wanted, "%.*s", (int)length, key);
    if (json_object(v, &it) != 0) return 0;
    while (json_next(&it, &name, value) == 1)
        if (json_equal(name, wanted)) return 1;
    return 0;
}

int main(int argc, char** argv) {
    char* line = NULL;
    size_t room = 0, where = 0;
    long number = 0, length;
    while ((length = (long)getline(&line, &room, stdin)) > 0) {
        number++;
        if (json_validate(line, (size_t)length, 16, &where) != 0)
            return printf("line %ld: not JSON at byte %zu\n", number, where), 1;
        for (int i = 1; i < argc; i++) {
            json_span value = {line, (size_t)length};
            for (const char* key = argv[i]; *key;) {
                size_t n = strcspn(key, ".");
                if (!member(value, key, n, &value)) return printf("line %ld: no `%s`\n", number, argv[i]), 1;
                key += n + (key[n] == '.');
            }
        }
    }
    free(line);
    printf("%ld lines\n", number);
    return number == 0;
}

/*
 * A flag that ends a forward pass early.
 *
 * llama.cpp asks its abort callback between the nodes of a graph. A callback in Python would need the
 * interpreter's lock each time, and would swallow a Ctrl-C that arrives inside it; this one reads an int.
 */
#ifndef GE_CANCEL_H
#define GE_CANCEL_H

#include <stdbool.h>
#include <stdint.h>

/* cffi: begin. */

/*
 * Tell whether the int32_t at `flag` is not 0. Has the type of ggml_abort_callback. The flag may be
 * written by another thread meanwhile; it must outlive the context that the callback is given to.
 */
bool ge_is_set(void *flag);

/* cffi: end */

#endif

#include "cancel.h"

bool ge_is_set(void *flag)
{
    /* An aligned int32_t is read whole on every target; volatile keeps it from being cached. */
    return *(const volatile int32_t *)flag != 0;
}

/* A PKCS#11 module before SoftHSM that goes wrong as $SHIM/mode says, and notes logins and signatures in $SHIM/log.
   A mode is one of these, or some with commas between them.
   slow: each signature takes 1 s. hang: it takes until the mode is another. bit, short, other: the signature is wrong.
   away, abort: there is none. final, locked: the flags of the PIN. serial: the serial is another. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long ulong;
typedef ulong (*call)();
enum { TOKEN_INFO = 6, LOGIN = 18, FIND_INIT = 26, FIND, FIND_FINAL, SIGN_INIT = 42, SIGN };
static struct list { unsigned char version[8]; call calls[68]; } real, ours;

static int mode(const char *wanted) {
    char path[4096], is[32] = "";
    snprintf(path, sizeof path, "%s/mode", getenv("SHIM"));
    FILE *file = fopen(path, "r");
    if (file) { if (fscanf(file, "%31s", is) != 1) is[0] = 0; fclose(file); }
    return strstr(is, wanted) != NULL;
}

static void note(const char *what) {
    char path[4096];
    snprintf(path, sizeof path, "%s/log", getenv("SHIM"));
    FILE *file = fopen(path, "a");
    if (file) { fprintf(file, "%s\n", what); fclose(file); }
}

static ulong token_info(ulong slot, unsigned char *info) {
    ulong result = real.calls[TOKEN_INFO](slot, info);
    ulong *flags = (ulong *)(info + 96);
    if (mode("final")) *flags |= 0x20000;
    if (mode("locked")) *flags |= 0x40000;
    if (mode("serial")) info[80] = 'x';
    return result;
}

static ulong login(ulong session, ulong user, unsigned char *pin, ulong length) {
    note("login");
    return real.calls[LOGIN](session, user, pin, length);
}

static ulong sign_init(ulong session, void *mechanism, ulong key) {
    ulong class = 3, found[9], count = 0;
    struct { ulong type; void *value; ulong length; } attribute = {0, &class, sizeof class};
    if (mode("other")) {
        real.calls[FIND_INIT](session, &attribute, 1UL);
        real.calls[FIND](session, found, 9UL, &count);
        real.calls[FIND_FINAL](session);
        while (count--) if (found[count] != key) { key = found[count]; break; }
    }
    return real.calls[SIGN_INIT](session, mechanism, key);
}

static ulong sign(ulong session, unsigned char *data, ulong length, unsigned char *signature, ulong *size) {
    note("sign");
    if (mode("away")) return 0x32; /* CKR_DEVICE_REMOVED */
    if (mode("abort")) abort();
    if (mode("slow") && signature) sleep(1);
    while (mode("hang")) usleep(10000);
    ulong result = real.calls[SIGN](session, data, length, signature, size);
    if (signature && mode("bit")) signature[9] ^= 1;
    if (signature && mode("short")) *size = 32;
    return result;
}

ulong C_GetFunctionList(struct list **list) {
    struct list *found;
    void *module = dlopen(getenv("SHIM_MODULE"), RTLD_NOW);
    if (!module) return 5;
    ulong result = ((call)dlsym(module, "C_GetFunctionList"))(&found);
    real = ours = *found;
    ours.calls[TOKEN_INFO] = (call)token_info;
    ours.calls[LOGIN] = (call)login;
    ours.calls[SIGN_INIT] = (call)sign_init;
    ours.calls[SIGN] = (call)sign;
    *list = &ours;
    return result;
}

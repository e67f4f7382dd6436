/* A PKCS#11 module that passes every call on to another module, and goes wrong on the way as a file tells it to.
 *
 *   KMSD_FAULTY_MODULE   the module that does the work
 *   KMSD_FAULTY_FAULTS   the file of faults, read anew at each call: lines of CALL ACTION [NUMBER]
 *   KMSD_FAULTY_CALLS    a file to which the name of each call is appended
 *
 * Actions: return N (that CK_RV, the call is not passed on), hold (until the line is gone), crash, exit N, empty (no
 * slots), flags N (are set in what the token says of itself), length N (is told instead of an output's length), data N
 * (that CK_RV for a search of data objects). CALL may also be `end`: what happens when the module is unloaded.
 *
 * All functions take at most eight arguments of a register's size, so that one prototype passes all of them on.
 */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

typedef unsigned long word;
typedef word (*function)(word, word, word, word, word, word, word, word);

/* CK_FUNCTION_LIST of PKCS#11 2.40, in its order. */
#define CALLS(X)                                                                                                       \
    X(C_Initialize) X(C_Finalize) X(C_GetInfo) X(C_GetFunctionList) X(C_GetSlotList) X(C_GetSlotInfo)                  \
    X(C_GetTokenInfo) X(C_GetMechanismList) X(C_GetMechanismInfo) X(C_InitToken) X(C_InitPIN) X(C_SetPIN)              \
    X(C_OpenSession) X(C_CloseSession) X(C_CloseAllSessions) X(C_GetSessionInfo) X(C_GetOperationState)                \
    X(C_SetOperationState) X(C_Login) X(C_Logout) X(C_CreateObject) X(C_CopyObject) X(C_DestroyObject)                 \
    X(C_GetObjectSize) X(C_GetAttributeValue) X(C_SetAttributeValue) X(C_FindObjectsInit) X(C_FindObjects)             \
    X(C_FindObjectsFinal) X(C_EncryptInit) X(C_Encrypt) X(C_EncryptUpdate) X(C_EncryptFinal) X(C_DecryptInit)          \
    X(C_Decrypt) X(C_DecryptUpdate) X(C_DecryptFinal) X(C_DigestInit) X(C_Digest) X(C_DigestUpdate) X(C_DigestKey)     \
    X(C_DigestFinal) X(C_SignInit) X(C_Sign) X(C_SignUpdate) X(C_SignFinal) X(C_SignRecoverInit) X(C_SignRecover)      \
    X(C_VerifyInit) X(C_Verify) X(C_VerifyUpdate) X(C_VerifyFinal) X(C_VerifyRecoverInit) X(C_VerifyRecover)           \
    X(C_DigestEncryptUpdate) X(C_DecryptDigestUpdate) X(C_SignEncryptUpdate) X(C_DecryptVerifyUpdate)                  \
    X(C_GenerateKey) X(C_GenerateKeyPair) X(C_WrapKey) X(C_UnwrapKey) X(C_DeriveKey) X(C_SeedRandom)                   \
    X(C_GenerateRandom) X(C_GetFunctionStatus) X(C_CancelFunction) X(C_WaitForSlotEvent)

enum {
#define NUMBER(name) number_of_##name,
    CALLS(NUMBER) number_of_calls
#undef NUMBER
};

static const char *const names[] = {
#define NAME(name) #name,
    CALLS(NAME)
#undef NAME
};

struct function_list {
    unsigned char version[2];
    function calls[number_of_calls];
};

/* The members of CK_TOKEN_INFO up to its flags: label, manufacturer, model, serial number. */
enum { TOKEN_FLAGS_OFFSET = 32 + 32 + 16 + 16 };

/* CK_ATTRIBUTE; CKA_CLASS and CKO_DATA are both 0. */
struct attribute {
    word type;
    const word *value;
    word length;
};

static struct function_list *real;

/* Whether these attributes are those of data objects. */
static int of_data(const struct attribute *attributes, word count)
{
    for (word i = 0; i < count; i++)
        if (attributes[i].type == 0)
            return *attributes[i].value == 0;
    return 0;
}

/* Whether the file has a line for `call`; its action and number. */
static int fault_of(const char *call, char action[16], word *number)
{
    const char *path = getenv("KMSD_FAULTY_FAULTS");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[128], name[64];
    int found = 0;

    if (!file)
        return 0;
    while (!found && fgets(line, sizeof line, file)) {
        *number = 0;
        found = sscanf(line, "%63s %15s %li", name, action, (long *)number) >= 2 && strcmp(name, call) == 0;
    }
    fclose(file);
    return found;
}

static void hold(const char *call)
{
    char action[16];
    word number;
    struct timespec pause = {0, 5000000};

    while (fault_of(call, action, &number) && strcmp(action, "hold") == 0)
        nanosleep(&pause, NULL);
}

static void note(const char *call)
{
    const char *path = getenv("KMSD_FAULTY_CALLS");
    FILE *file = path ? fopen(path, "a") : NULL;

    if (file) {
        fprintf(file, "%s\n", call);
        fclose(file);
    }
}

static word pass(int call, word a, word b, word c, word d, word e, word f, word g, word h)
{
    char action[16];
    word number, result;

    note(names[call]);
    if (!fault_of(names[call], action, &number))
        return real->calls[call](a, b, c, d, e, f, g, h);
    if (strcmp(action, "return") == 0)
        return number;
    if (strcmp(action, "data") == 0 && of_data((const struct attribute *)b, c)) /* C_FindObjectsInit(session, a, n) */
        return number;
    if (strcmp(action, "crash") == 0)
        *(volatile int *)0 = 0;
    if (strcmp(action, "exit") == 0)
        _exit((int)number);
    if (strcmp(action, "hold") == 0)
        hold(names[call]);
    if (strcmp(action, "empty") == 0) { /* C_GetSlotList(present, slots, count) */
        *(word *)c = 0;
        return 0;
    }
    result = real->calls[call](a, b, c, d, e, f, g, h);
    if (result != 0)
        return result;
    if (strcmp(action, "flags") == 0) /* C_GetTokenInfo(slot, info) */
        *(word *)(b + TOKEN_FLAGS_OFFSET) |= number;
    if (strcmp(action, "length") == 0 && e) /* C_Encrypt, C_Decrypt(session, in, length, out, length) */
        *(word *)e = number;
    return result;
}

#define PASS(name)                                                                                                     \
    static word pass_##name(word a, word b, word c, word d, word e, word f, word g, word h)                            \
    {                                                                                                                  \
        return pass(number_of_##name, a, b, c, d, e, f, g, h);                                                         \
    }
CALLS(PASS)

static struct function_list list = {{2, 40}, {
#define ENTRY(name) pass_##name,
    CALLS(ENTRY)
#undef ENTRY
}};

word C_GetFunctionList(struct function_list **out)
{
    const char *path = getenv("KMSD_FAULTY_MODULE");
    void *module = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    word (*get)(struct function_list **) = module ? (word (*)(struct function_list **))dlsym(module, "C_GetFunctionList") : NULL;

    if (!get)
        return 5; /* CKR_GENERAL_ERROR */
    *out = &list;
    return get(&real);
}

__attribute__((destructor)) static void end(void)
{
    char action[16];
    word number;

    if (fault_of("end", action, &number) && strcmp(action, "hold") == 0)
        hold("end");
}

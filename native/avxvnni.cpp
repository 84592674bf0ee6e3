#define OPENAFM_VNNI
#include "avx2.cpp"

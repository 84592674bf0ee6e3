#define OPENAFM_VBMI
#include "avx512.cpp"

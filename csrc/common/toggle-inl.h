// Toggles the macro with which the include guards of -inl.h files are compared, so that they are read once more.
#ifdef DETR_FAST_TOGGLE
#undef DETR_FAST_TOGGLE
#else
#define DETR_FAST_TOGGLE
#endif

// The legend of the letters that end tensor names, in the whole program.
//
//   B  rows (packed sequences) of this rank      S  segments (examples inside rows)
//   T  tokens of this rank in a microbatch       D  model width
//   H  heads                                     K  head width            Q = H*K
//   (of keys and values Q is the key/value heads times K: they may be fewer)
//   F  hidden width of a feed-forward            V  vocabulary
//   E  experts of a layer (global)               e  experts held by this rank
//   k  choices per token                         N  routed copies, T*k at most
//   R  rows received for this rank's experts     L  layers
//   G  routing groups                            P  relative offsets, 2*longest-1
//
// x_TD is a matrix of T rows and D columns; w_eDF is e matrices of D rows and F columns. The gradient of x_TD is dx_TD.
#pragma once

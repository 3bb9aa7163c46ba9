// Prints the reference page of the input deck; `make docs` writes it to input/README.md.
#include <cstdio>

#include "deck/deck.hpp"

int main() { return std::fputs(flanmoe::deck_reference().c_str(), stdout) < 0 ? 1 : 0; }

#include "kernels/transfer.hpp"

#include "kernels/host_transfer.hpp"

namespace flanmoe::reference {

const TransferKernels transfer_kernels = {&host_memory, upload_on_host<elementwise_kernels>, download_on_host};

}  // namespace flanmoe::reference

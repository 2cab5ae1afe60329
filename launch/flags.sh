# shellcheck shell=bash
# To be sourced, with tpu, gpu or cpu: the compiler's options on that hardware. Your own flags come last and win.
# The names are those of XLA's flags guidance (openxla.org/xla/flags_guidance) and of JAX's xla_flags page.
case $1 in
  tpu)
    flags=(
      # On by default: the scheduler that hides latencies, and all-gathers behind computation. Not on: all-reduces
      # behind it, which gradients are summed with.
      --xla_tpu_enable_async_collective_fusion=true
      --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
      # With several slices: sums over the data centre's network run behind computation, of whatever sizes they are.
      --xla_tpu_enable_data_parallel_all_reduce_opt=true
      --xla_tpu_data_parallel_opt_different_sized_ops=true
    )
    # Not xla_tpu_spmd_rng_bit_generator_unsafe: noise must not depend on the mesh.
    export LIBTPU_INIT_ARGS="${flags[*]} ${LIBTPU_INIT_ARGS:-}"
    ;;
  gpu)
    # Collectives start early and are waited for late, so that they run behind computation. Off by default on GPUs.
    export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
    ;;
  cpu) ;;
  *)
    echo "$1: wants tpu, gpu or cpu" >&2
    exit 2
    ;;
esac

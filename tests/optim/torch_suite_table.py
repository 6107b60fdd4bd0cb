"""The tests of PyTorch's class TestOptimRenewed (test/test_optim.py) that have no check here, and why.

All others are in `torch_suite.CHECKS`, under PyTorch's name.
"""

# by the name in PyTorch: our contract check (tests/optim/contract) of what it means for an optimizer without such a flag
IN_THE_CONTRACT = {
    "test_fused_does_not_step_if_foundinf": "a_grad_scaler_skips_an_infinite_step",
    "test_fused_error_on_params_on_meta": "meta_parameters_materialise_later",
}

NOT_APPLICABLE = {
    "test_rosenbrock_sparse": "for optimizers that take sparse gradients; they are refused by name (test_errors)",
    "test_complex_2d": "for methods that look at each number alone: compares with the parts in tensors of their own",
    "test_adamw_serialization": "of a key that AdamW and Adam share",
    "test_second_order_optims_return_consistent_types": "for optimizers whose step requires a closure",
    "test_foreach_large_tensor": "of the kernels behind foreach",
    "test_peak_memory_foreach": "compares foreach with the loop",
    "test_defaults_changed_to_foreach": "mocks the functions behind foreach",
    "test_fused_matches_forloop": "there is one implementation, no `fused` flag",
    "test_fused_large_tensor": "of the kernels behind fused",
    "test_fused_cpu_matches_cuda": "of the kernels behind fused",
    "test_cpu_load_state_dict": "of the flags fused and capturable; test_state_dict_with_cuda_params moves a state",
}

// SPDX-License-Identifier: Apache-2.0

fn main() {
    println!("cargo:rerun-if-changed=proto/pod.proto");
    protobuf_codegen::Codegen::new()
        .pure()
        .include("proto")
        .input("proto/pod.proto")
        .customize(protobuf_codegen::Customize::default().lite_runtime(true))
        .cargo_out_dir("proto")
        .run_from_script();
}

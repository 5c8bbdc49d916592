(module
  (import "wasi_snapshot_preview1" "stack" (global (mut i32)))
  (memory (export "memory") 1)
  (func (export "_start")))

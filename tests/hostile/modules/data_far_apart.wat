(module
  (memory (export "memory") 16384)
  (data (i32.const 0) "x")
  (data (i32.const 1073741823) "x")
  (func $main (export "_start")))

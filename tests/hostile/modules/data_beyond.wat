(module
  (memory (export "memory") 1)
  (data (i32.const 65533) "four")
  (func $main (export "_start")))

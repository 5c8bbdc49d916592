(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (drop (i32.trunc_f64_u (f64.const inf)))))

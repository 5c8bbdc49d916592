(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (drop (ref.null extern))))

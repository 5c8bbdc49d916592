(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (loop $again

      (br $again))))

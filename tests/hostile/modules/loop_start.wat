(module
  (memory (export "memory") 1)
  (start $first)
  (func $first
    (loop $again
      (br $again)))
  (func $main (export "_start")))

(module
  (memory (export "memory") 1)
  (func $main (export "_start")
    (loop $again
      (drop (memory.grow (i32.const 60000)))
      (br $again))))

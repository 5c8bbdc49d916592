(module
  (memory (export "memory") 1)
  (table 100000 funcref)
  (elem declare func $main)
  (func $main (export "_start")
    (loop $again
      (table.fill (i32.const 0) (ref.func $main) (i32.const 100000))
      (table.copy (i32.const 1) (i32.const 0) (i32.const 99999))
      (br $again))))

(module
  (memory (export "memory") 1)
  (data $gone "gone")
  (func $main (export "_start")
    (data.drop $gone)
    (memory.init $gone (i32.const 0) (i32.const 0) (i32.const 4))))

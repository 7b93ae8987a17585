//! A panic ends its own process only; the caller gets message, place and call chain.

use tokio_run_in_process::{block_on, run_in_process};

#[inline(never)]
fn parse(text: &str) -> u32 {
    text.parse().unwrap_or_else(|e| panic!("{text:?} is not a number: {e}"))
}

async fn sum(numbers: Vec<String>) -> u32 {
    numbers.iter().map(|text| parse(text)).sum()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    block_on(async {
        let words = |words: [&str; 3]| words.map(str::to_owned).to_vec();
        println!("1 + 2 + 3 = {}", run_in_process(sum, words(["1", "2", "3"])).await?);

        let error = run_in_process(sum, words(["1", "two", "3"])).await.expect_err("it panics");
        let report = error.panic().expect("a panic");
        println!("message: {}", report.message());
        println!("place:   {}", report.location().unwrap_or("unknown"));
        for frame in report.frames() {
            println!("     in: {}", frame.function);
        }
        Ok(())
    })?
}
